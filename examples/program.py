"""A program of one's own: greedy continuations of a prefix by each of its likeliest tokens, all
read in the same forwards."""

from fader import Fader
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits, Program


def lookahead(policy: Policy, prefix: Prefix, width: int, length: int) -> Program:
    """The `width` likeliest next tokens of `prefix`, each continued greedily by `length` tokens."""
    logits = yield NextLogits(policy, [prefix])
    drafts = [prefix.then(token) for token in logits[0].topk(width).indices.tolist()]
    for _ in range(length):
        logits = yield NextLogits(policy, drafts)  # [drafts, vocabulary]
        drafts = [
            draft.then(token)
            for draft, token in zip(drafts, logits.argmax(-1).tolist(), strict=True)
        ]
    return [draft.tokens for draft in drafts]


with Fader() as fader:
    backbone = fader.backend.backbones[fader.model]
    policy = Policy(fader.model, tuple(backbone.encode("The old lighthouse keeper")))
    needs = {fader.model: (4, len(policy.prompt) + 16)}  # rows, and positions of the longest
    running = fader.backend.engine.run(lookahead(policy, Prefix(), 3, 8), needs)
    for tokens in running.result():
        print(backbone.decode(tokens))
