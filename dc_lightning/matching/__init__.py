"""The mathematics of matching, in plain torch: gradients and their distances, embeddings, BatchNorm statistics."""
