"""What a person looks at: metrics, progress, curves, one HTML page, the card of an adapter."""

from jaxtune.report.card import adapter_card as adapter_card
from jaxtune.report.environment import MACHINE as MACHINE
from jaxtune.report.environment import peak_rss as peak_rss
from jaxtune.report.environment import versions as versions
from jaxtune.report.files import replace_file as replace_file
from jaxtune.report.html import Confusion as Confusion
from jaxtune.report.html import Prediction as Prediction
from jaxtune.report.html import Report as Report
from jaxtune.report.html import render as render
from jaxtune.report.html import write_report as write_report
from jaxtune.report.interval import Interval as Interval
from jaxtune.report.interval import wilson as wilson
from jaxtune.report.metrics import MetricsLog as MetricsLog
from jaxtune.report.metrics import open_metrics as open_metrics
from jaxtune.report.metrics import read_metrics as read_metrics
from jaxtune.report.metrics import truncate_after as truncate_after
from jaxtune.report.placement import draw_placement as draw_placement
from jaxtune.report.plot import curves as curves
from jaxtune.report.progress import Progress as Progress
