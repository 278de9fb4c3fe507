"""A server of OpenAI's API for one model on one machine: docs/guide/serving.md. It needs the extra ``serve``."""
