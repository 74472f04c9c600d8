"""Fine-tuning of the answering model on one's own videos."""
