"""Registers the plugin when it is imported, which `--user-dir` does.

fairseq imports the folder that it is given, and then every module in its folder `tasks`.
"""

import fairseq_fixedpoint

fairseq_fixedpoint.register()
