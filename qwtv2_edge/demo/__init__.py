"""The demonstration: a small residual network on handwritten digits, with its weights and data in the package."""
