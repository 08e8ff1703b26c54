"""The tokenizer of the embedded model: whole words of the generated text, letters for everything else."""

import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from zotune.embedded.lexicon import words

PAD, UNK, BOS, EOS, SEP = SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[SEP]")
MAX_WORDS = 1_800
MAX_LENGTH = 256

_ENDINGS = words("s es ed ing er est ly ness ment tion al able ful less ive ous ity ic an en")


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a lower-casing WordPiece tokenizer with the most frequent words of `texts`.

    Words outside the vocabulary are spelt in pieces down to single letters, so any ASCII text can be read. One text
    becomes `[BOS] text [EOS]`, a pair `[BOS] first [SEP] second [EOS]`.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    signs = tuple(string.ascii_lowercase + string.digits + string.punctuation)
    by_rank = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = [word for word in by_rank if len(word) > 1][:MAX_WORDS]
    pieces = [f"##{piece}" for piece in (*string.ascii_lowercase, *string.digits, *_ENDINGS)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIALS, *signs, *pieces, *frequent)))}
    tokenizer = Tokenizer(WordPiece(vocab=vocabulary, unk_token=UNK, max_input_chars_per_word=64))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {SEP} $B:1 {EOS}:1",
        special_tokens=[(token, vocabulary[token]) for token in (BOS, EOS, SEP)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        sep_token=SEP,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        # A decoder has no segment embeddings, so token type ids would only be refused by its forward.
        model_input_names=["input_ids", "attention_mask"],
    )
