"""Metrics: streaming counts that are added on the device, and the scores read off them; EM challenge scores."""

from segjax.metrics import confusion as confusion
from segjax.metrics import conventions as conventions
from segjax.metrics import em as em
