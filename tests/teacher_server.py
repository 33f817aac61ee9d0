"""Endpoint on loopback around one of our own models: chat completions, and completions that tell log-probabilities."""

import threading
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from minillm.models.shared_tokenizer import load_shared_tokenizer
from tests import judge_server
from tests.judge_server import KEY, Handler, Reply

KIND = Literal["vllm", "strings", "text"]
"""Tells tokens by id; as strings, for token ids; as strings, for text alone, where it leaves out the token that starts
a message and shows no other special token (llama-cpp-python with SmolLM2)."""


class TeacherServer(judge_server.Endpoint):
    """Server of a model, which answers greedily."""

    def __init__(self, model: Path, tokenizer: Path, kind: KIND = "vllm") -> None:
        super().__init__(TeacherHandler)
        self.kind, self.shared = kind, load_shared_tokenizer(tokenizer)
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.one_at_a_time = threading.Lock()
        self.off_by = 0
        """Places that log-probabilities are moved by, a known fault of servers."""
        self.said: dict[str, dict[str, Any]] = {}
        """Fields of the choice to some questions, in the place of what the model says."""

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """Answer as the model does after the last message, or as planned."""
        if planned := self.said.get(messages[-1]["content"]):
            text, finish = planned["text"], planned.get("finish", "stop")
        else:
            text, finish = self.write(self.shared.tokenizer(messages[-1]["content"])["input_ids"], max_tokens)
        return {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}

    def write(self, prompt: list[int], max_tokens: int) -> tuple[str, str]:
        """Write greedily; return the text and the reason of its end."""
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            token = int(self.log_probs([*prompt, *tokens])[-1].argmax())
            if token in self.shared.ends:
                break
            tokens.append(token)
        return self.shared.texts([tokens])[0], "stop" if len(tokens) < max_tokens else "length"

    @torch.no_grad()
    def log_probs(self, tokens: list[int]) -> torch.Tensor:
        """Log-probabilities (T, V) of what follows each token."""
        with self.one_at_a_time:
            logits = self.model(torch.tensor([tokens])).logits[0, :, : self.shared.entries]
        return logits.log_softmax(dim=1)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Continue by one token, and tell of the prompt's and of this one."""
        prompt, k = body["prompt"], body["logprobs"]
        tokens = (
            prompt if isinstance(prompt, list) else self.shared.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        )
        laws = self.log_probs(tokens)
        written = [*tokens, int(laws[-1].argmax())]
        spelled = [self.spelled(token) for token in written]
        told: list[dict[int, float] | None] = [None]
        for place, token in enumerate(written[1:]):
            law = laws[min(place + self.off_by, len(laws) - 1)] if place + 1 < len(tokens) else laws[place]
            likeliest = law.topk(k).indices.tolist()
            told.append({other: float(law[other]) for other in dict.fromkeys([*likeliest, token])})
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        shown = [
            place
            for place, token in enumerate(written)
            if self.kind != "text" or token != self.shared.tokenizer.convert_tokens_to_ids("<|start|>")
        ]
        choice["logprobs"] = {
            "tokens": [spelled[place] for place in shown],
            "token_logprobs": [(told[place] or {}).get(written[place]) for place in shown],
            "top_logprobs": [
                None if (of := told[place]) is None else {self.spelled(token): law for token, law in of.items()}
                for place in shown
            ],
            "text_offset": [],
        }
        if self.kind == "vllm":
            choice["prompt_logprobs"] = [
                of and {str(token): {"logprob": law, "rank": 1, "decoded_token": ""} for token, law in of.items()}
                for of in told[:-1]
            ]
        return {"choices": [choice], "usage": {"prompt_tokens": len(tokens), "completion_tokens": 1, "total_tokens": 0}}

    def spelled(self, token: int) -> str:
        """Return a token as a string: parts of letters become replacement characters."""
        if self.kind == "text" and token in self.shared.tokenizer.all_special_ids:
            return ""
        return str(self.shared.tokenizer.decode([token]))


class TeacherHandler(Handler):
    @property
    def teacher(self) -> TeacherServer:
        assert isinstance(self.server, TeacherServer)
        return self.server

    def reply(self, body: dict[str, Any], planned: Reply | None) -> None:
        about = {"id": "x", "created": 0, "model": body["model"] + "-exactly"}
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.send(401, {"error": {"message": f"{self.headers['Authorization']} is no key"}})
        elif planned is not None:
            planned(self, body)
        elif self.path == "/v1/completions":
            if self.teacher.kind == "text" and isinstance(body["prompt"], list):
                self.send(500, {"error": {"message": "prompt: Input should be a valid string"}})
            else:
                self.finish_reply(body, {**about, "object": "text_completion", **self.teacher.complete(body)})
        else:
            choice = self.teacher.chat(body["messages"], body["max_tokens"])
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            whole = {**about, "object": "chat.completion", "choices": [choice], "usage": usage}
            self.finish_reply(body, whole)

    def answer(self, body: dict[str, Any], content: str | None) -> None:
        """Answer as the model does, whatever a judge would say."""
        self.reply(body, None)

    def finish_reply(self, body: dict[str, Any], value: dict[str, Any]) -> None:
        self.send(200, value)
        with self.teacher.lock:
            self.teacher.answered[str([body.get(name) for name in ("prompt", "messages", "seed")])] += 1
