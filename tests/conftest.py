"""What every test process sets before anything heavy is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a model hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs one process per core
