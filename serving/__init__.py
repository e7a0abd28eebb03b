"""A bundle answers over HTTP, as OpenAI's API has it. The scheduler itself lives in `runtime/`."""
