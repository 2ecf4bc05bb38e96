"""From a trained network to files that run without it: ONNX, registry, loading, predicting."""
