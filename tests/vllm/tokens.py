"""Greedy tokens of vLLM for folders, a line of JSON for each: python -m tests.vllm.tokens PROCESSES FOLDER..."""

import json
import os
import sys

# On a CPU: a small cache, and no binding of threads.
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
PROMPTS = [[5, 17, 200, 33, 9], [400, 3, 77]]
NEW_TOKENS = 10


def main(processes: int, folders: list[str]) -> None:
    os.environ |= {**SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes > 1))}
    from vllm import LLM, SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, detokenize=False, ignore_eos=True)
    for folder in folders:
        try:
            llm = LLM(
                folder,
                skip_tokenizer_init=True,
                dtype="float32",
                enforce_eager=True,
                max_model_len=64,
                max_num_seqs=2,
                tensor_parallel_size=processes,
                disable_log_stats=True,
            )
            done = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], sampling, use_tqdm=False)
            found: object = [list(output.outputs[0].token_ids) for output in done]
            del llm
        except Exception as error:  # each folder has a line
            found = f"{type(error).__name__}: {error}"
        print("TOKENS " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
