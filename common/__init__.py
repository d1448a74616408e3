"""The code that ingress and workers share: client messages, Redis layout, settings, logging."""
