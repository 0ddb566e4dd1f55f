"""The benchmark suite: speed, memory and perplexity, each beside its floor.

`scripts/benchmark` runs it. A part is a module with `Settings`, `PRESETS`, `measure`, `tables` and,
if it draws, `plots`; `parts.py` lists them. `measure` yields raw facts, `results.py` saves them
as JSON with the hardware's name, and every table and plot is rendered from that JSON.
"""

import logging

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq's wav2vec2 asks all for more
