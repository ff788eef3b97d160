"""Evaluation, prediction and pictures of a trained model."""
