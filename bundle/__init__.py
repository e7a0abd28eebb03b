"""The contract between the stages: bundle folder, manifest, model configs, graph signatures, errors."""
