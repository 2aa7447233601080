"""Writes a small tokenizer (words, split at blanks) that guidellm makes its prompts with, so that nothing is fetched.

usage: .venv/guidellm/bin/python bench/gateway/tokenizer.py FOLDER
"""
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = """the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but not what all were
we when your can said there use an each which she do how their if will up other about out many then them these so some her would make
like him into time has look two more write go see number no way could people my than first water been call who oil its now find long down day
did get come made may part""".split()

vocabulary = {"[UNK]": 0, **{word: number for number, word in enumerate(WORDS, 1)}}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(sys.argv[1])
