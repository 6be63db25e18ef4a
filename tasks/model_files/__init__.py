"""Models on disk: skops files and ONNX graphs."""
