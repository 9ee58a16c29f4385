"""`python -m services.inference.structures_sandbox MODEL MIB`: compile structures, follow each a little.

What takes too long is ended from outside; what takes too much memory ends itself. Answers `good` or `bad`, a line each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from services.inference.orphans import end_with_parent

_FOLLOWED = 64  # tokens


def main(model: str, mebibytes: int) -> None:
    """Answer until standard input ends."""
    end_with_parent(signal.SIGKILL)()
    import xgrammar
    from transformers import AutoConfig, AutoTokenizer

    size = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config().vocab_size
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm") as pages:
            used = int(pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20),) * 2)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["field"] == "regex":
                grammar = compiler.compile_regex(job["text"])
            else:
                grammar = compiler.compile_json_schema(job["text"], any_whitespace=False)
            _follow(xgrammar, grammar, size)
            print("good", flush=True)
        except Exception:
            print("bad", flush=True)


def _follow(xgrammar: Any, grammar: Any, size: int) -> None:
    """Take tokens that the structure allows, spread over all of them: some are dearer to follow than others."""
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, size)
    for step in range(_FOLLOWED):
        if matcher.is_terminated():
            return
        matcher.fill_next_token_bitmask(mask)
        bits = (mask[0, :, None] >> _bits()) & 1
        allowed = bits.flatten()[:size].nonzero().flatten()
        if not len(allowed):
            raise ValueError("no output can satisfy it")
        matcher.accept_token(int(allowed[step * 7919 % len(allowed)]))


def _bits() -> Any:
    import torch

    return torch.arange(32, dtype=torch.int32)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
