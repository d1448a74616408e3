"""The model: FastConformer encoder and transducer, streaming."""
