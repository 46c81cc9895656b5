"""Texts and images, made into what models read: tokens, batches, calibration samples."""
