"""Encoders and classifiers for use without selftaught: ONNX, torch.export, Hugging Face layout."""
