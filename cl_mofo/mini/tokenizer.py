"""The tiny model's tokenizer: byte-level BPE, so that any text comes back exactly.

No normaliser and no added prefix space; every digit is a token of its own. The spellings of the
special tokens have no meaning inside a text: `<s>` in a line of Py150 becomes ordinary tokens.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from cl_mofo.mini.dice import Dice
from cl_mofo.mini.world import MAKERS, texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(
    vocabulary: int, samples: int = 8000, context: int = 2048
) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts of the world and on prompts, so that both come out short.

    Args:
        vocabulary: number of tokens, special tokens and the 256 bytes included.
        samples: number of texts; half as many prompts are added.
        context: the model's longest input, written down as `model_max_length`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    dice = Dice("cl-mofo mini tokenizer")
    makers = list(MAKERS.values())
    prompts = [makers[i % len(makers)](dice, i)["prompt"] for i in range(samples // 2)]
    corpus = list(itertools.islice(texts("tokenizer"), samples)) + prompts
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
