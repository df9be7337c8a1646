"""Sample → tensors → answer: preprocess, ONNX Runtime session, decoders. Nothing here knows events or MQTT."""
