"""Data sets, and batches of them on the devices. They know nothing of masks."""

from sup_tickets.data.files import DataNotPrepared, Split
from sup_tickets.data.image_sets import DATASETS, Dataset, load_dataset

__all__ = ["DATASETS", "DataNotPrepared", "Dataset", "Split", "load_dataset"]
