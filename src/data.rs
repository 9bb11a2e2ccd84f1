//! Datasets and batches for calibration and evaluation.
