"""Streaming metrics: exact counts that are added on the device, and the scores read off them."""

from segjax.metrics import confusion as confusion
from segjax.metrics import conventions as conventions
