"""Published PyTorch weights: tensors of torchvision, segmentation_models_pytorch and timm as our variables, and back.

``torch.py`` is the interface. Each family of networks has a file with the names of its tensors, as pairs of (pattern of
our module's path, name of the torch module); ``classifiers.py``, ``smp.py`` and the like say which of our models a
published name stands for. Reading files, ``files.py``, needs neither torch nor trust in them.
"""
