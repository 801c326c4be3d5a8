"""What is fast, against what; `python -m bench` measures and LOG.md keeps what was tried."""
