"""Models on OpenAI-compatible servers, such as vLLM, SGLang, llama-server and hosted chat APIs.

- `address`: where a model is, and its API key.
- `connection`: sends HTTP requests. `patience`: how often, and how long.
- `dialects`: a request in the JSON of each kind of server. `responses`: the JSON of each kind of server as a response.
- `probing`: finds a model and tests it. `model`: one model, its prompts and its responses. `controls`: control tokens in text.
- `writer`: the steps of many problems at once, as the scheduler wants them.
- `requests`: what is asked for a step. `received`, `solution`: how responses become steps. `billing`: what a step costs.
- `chat`: what a chat API needs that completions do not.
"""
