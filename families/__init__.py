"""One folder per model family, without torch: config, weight map, tokenizer, prompt, preprocessing, output."""
