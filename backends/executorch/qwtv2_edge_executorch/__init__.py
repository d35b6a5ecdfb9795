"""ExecuTorch backend."""
