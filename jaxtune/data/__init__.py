"""Records to tokens to batches: read, split, encode, batch, and look at what the loss will see."""

from jaxtune.data.batch import Batches as Batches
from jaxtune.data.batch import batches as batches
from jaxtune.data.batch import eval_batches as eval_batches
from jaxtune.data.batch import steps_per_epoch as steps_per_epoch
from jaxtune.data.chat import render_chat as render_chat
from jaxtune.data.column import column as column
from jaxtune.data.encode import Encoded as Encoded
from jaxtune.data.labels import encode_classification as encode_classification
from jaxtune.data.labels import encode_regression as encode_regression
from jaxtune.data.labels import label_names as label_names
from jaxtune.data.language import encode_completions as encode_completions
from jaxtune.data.language import encode_text as encode_text
from jaxtune.data.pack import fill as fill
from jaxtune.data.preview import preview as preview
from jaxtune.data.read import read as read
from jaxtune.data.render import render as render
from jaxtune.data.render import render_many as render_many
from jaxtune.data.row import Row as Row
from jaxtune.data.split import deduplicate as deduplicate
from jaxtune.data.split import split as split
from jaxtune.data.stream import stream as stream
from jaxtune.data.tokenizer import SpecialTokens as SpecialTokens
from jaxtune.data.tokenizer import Tokenizer as Tokenizer
