"""Everything that touches transformers: loading models, the trainer, what is recorded and shown."""
