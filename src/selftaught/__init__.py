"""selftaught: representations from few unlabelled pictures, new tasks from 1-5 labels a class."""

__version__ = "0.1.0"
