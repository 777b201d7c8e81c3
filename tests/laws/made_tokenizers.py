"""Small tokenizers of every sort, made in a moment, for tests of what text becomes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from research.data.tokenizer import Tokenizer, open_tokenizer

TEXTS = (
    "the cat sat on the mat and the dog ran home",
    "what is two plus two? the answer is four, said the teacher.",
    "once upon a time there was a little girl named Lily; she loved to play outside",
    "name : Alimentum | area : city centre | family friendly : no =>",
    "سلام دنیا! wörld naïve 123 456",
)

QWEN3 = (Path(__file__).parents[1] / "assets/chat_templates/qwen3.jinja").read_text()

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As Llama 3 does: BOS from the template, contents trimmed.
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)

# As Llama 2 does: no marker of roles but brackets, EOS after an answer, roles must alternate.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)

# Marks its answers itself, and forgets the end of turn.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# No special token anywhere: the end of the last turn must come from EOS.
BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

TEMPLATES = {
    "qwen3": QWEN3,
    "chatml": CHATML,
    "headers": HEADERS,
    "brackets": BRACKETS,
    "marked": MARKED,
    "bare": BARE,
}
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>")


def byte_level(
    folder: Path,
    *,
    template: str | None = None,
    adds_bos: bool = False,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    pad: str | None = None,
) -> Tokenizer:
    """Make a byte-level BPE folder, as of Qwen or Llama 3."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    specials = [*dict.fromkeys(s for s in (bos, eos, pad, *SPECIALS) if s is not None)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    return _write(folder, inner, template=template, bos=bos, eos=eos, pad=pad)


def metaspace(folder: Path, *, template: str | None = None) -> Tokenizer:
    """Make a folder as of Llama 2: a space before the text, bytes for what is unknown, BOS."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({letter for text in TEXTS for letter in text if letter.isascii()} - {" "})
    vocabulary = {piece: id for id, piece in enumerate([*pieces, *letters, "▁t", "▁a", "he"])}
    merges = [("▁", "t"), ("▁", "a"), ("h", "e")]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>", *SPECIALS])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return _write(folder, inner, template=template, bos="<s>", eos="</s>", pad=None)


def _write(
    folder: Path,
    inner: tokenizers.Tokenizer,
    *,
    template: str | None,
    **specials: str | None,
) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = {f"{name}_token": text for name, text in specials.items() if text is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return open_tokenizer(str(folder))


def sentencepiece_file(file: Path, *, bos: bool = True) -> Tokenizer:
    """Make a bare SentencePiece model with byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=model,
        vocab_size=340,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        bos_id=1 if bos else -1,
        eos_id=2 if bos else 1,
        unk_id=0,
        minloglevel=2,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.getvalue())
    return open_tokenizer(str(file))


def trained_text(tokenizer: Tokenizer, example) -> list[str]:
    """Give the text of each run of trained tokens, specials included."""
    runs, previous = [], False
    for token, trained in zip(example.tokens, example.trained, strict=True):
        if trained and not previous:
            runs.append([])
        if trained:
            runs[-1].append(int(token))
        previous = trained
    return [tokenizer.show(run) for run in runs]
