"""bittorch in transformers: after ``import bittorch.hf`` its loading and saving know packed models.

>>> import bittorch.hf
>>> config = bittorch.hf.TernaryConfig(depth=4)
>>> model = AutoModelForCausalLM.from_pretrained("a-dense-model", quantization_config=config)
>>> model.save_pretrained("packed")
>>> model = AutoModelForCausalLM.from_pretrained("packed")

Without the import transformers does not know the method: it warns of an "unknown quantization type" and loads such a
folder with random weights. Needs transformers from 5.0 on, of the extra ``hf``. Adapters of PEFT: `bittorch.hf.peft`.
"""

try:
    import transformers as _transformers
except ImportError as error:
    raise ImportError(f"bittorch.hf needs transformers>=5; pip install 'bittorch[hf]' brings it ({error})") from None

if int(_transformers.__version__.split(".")[0]) < 5:
    raise ImportError(f"bittorch.hf needs transformers>=5, got {_transformers.__version__}; pip install 'bittorch[hf]'")

from bittorch.hf.card import model_card, push_to_hub
from bittorch.hf.config import TernaryConfig
from bittorch.hf.quantizer import TernaryHfQuantizer, attach, register
from bittorch.hf.save import save_pretrained

register()

__all__ = ["TernaryConfig", "TernaryHfQuantizer", "attach", "model_card", "push_to_hub", "save_pretrained"]
