"""What several commands share: arguments, options, progress, batches, and reports."""
