"""The kit for half an hour on a GPU that has no network: prepared here, run there, a line for every failure.

python -m benchmarks.gpu.prepare          fills .gpu-kit: provider, graphs without weights, golden bundles
python -m benchmarks.gpu.run STAGE ...    there: one process for each stage, its results after every step
python -m benchmarks.gpu.page             writes docs/gpu.md from the results
"""
