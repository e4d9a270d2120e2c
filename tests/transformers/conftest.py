"""One thread: the models are tiny, and threads that wait for one another burn what others need."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
