"""PaliGemma's tokens for places: `<loc0000>`…`<loc1023>` for coordinates, `<seg000>`…`<seg127>` for outlines."""

# Coordinates are steps of 1/1024 of a side. Google's own evaluator divides by 1023 and the published demonstration by
# 1024; they differ by less than 0.1 % of the side.
LOCATIONS = 1024
SEGMENTS = 128

# They stand in the vocabulary and not among the added tokens of the published tokenizer.json.
CONTENT_TOKENS = (*(f"<loc{at:04}>" for at in range(LOCATIONS)), *(f"<seg{at:03}>" for at in range(SEGMENTS)))
