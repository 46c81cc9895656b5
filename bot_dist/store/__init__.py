"""The checkpoint: zarr v3 arrays whose commit is a manifest with a digest per inner chunk. Format version 1.

A store at ``URL/`` holds

- ``manifest.json``: the commit, written last and at once: on object stores created on condition that there is none,
  on local disks after everything else is synced. It names the attempt, and has the model's configuration, every
  parameter's axes, dtype, shards, chunks and digests (xxh3-64 of each inner chunk's bytes), the other files' digests,
  provenance (source with its digest, recipe, plan, versions, layer permutations and details where there are some), and
  its own digest. Readers refuse a store without it, and check every chunk that they read against it;
- ``zarr.json``: a group, whose attribute ``bot_dist`` names the format version;
- ``data/ATTEMPT/``: what one attempt wrote, a zarr group from the commit on: its ``zarr.json`` files are written then.
  Every attempt writes into its own, so a writer that was given up for dead harms no other; a commit removes the other
  attempts of its plan, and all others when it replaces a store. In there

    - ``NAME/``: one sharded array per parameter, named as ``transformers`` names it, of the *unfused* shape with its
      axes as ``dimension_names`` (``kv_heads, group, head_dim, embed``; ``embed, embed_2`` where one comes twice), its
      shards beside each other (``c.0.3.0``); ``attributes.shape`` is the fused shape, and
      ``attributes.learning_rate_factor`` what Adam's learning rate is to be multiplied by, and weight decay divided by;
    - ``details/MODULE/BAND/``: what shrinking dropped, where the plan keeps it: one array per detail band of a module,
      with the layer axis; ``BAND`` has a letter per axis, ``d`` where it is the detail. Axes that one operator changed
      together have it along the first of them, and size 1 along the others. No parameters of the model;
    - ``tokenizer/``, ``processor/``, ``source/``: the files of the tokenizer, of the image processor, and what else lay
      beside the source's weights and goes along with them (how to generate, licences, the card of the model);
    - ``moments/exp_avg/NAME/`` and ``moments/exp_avg_sq/NAME/``: AdamW's moments of a parameter, float32 and of its
      shape, where the store is the state of a training, of which the provenance then tells under ``training``, or a
      transfer has carried them, of which it tells under ``moments``;
    - ``_layout.json``, ``_steps/``: of an unfinished attempt: what it writes, and what is done; gone after the commit.

- ``operators/NAME/``: stores of this same format with the operators that were fitted to the source
  (``fitted_operators.py``), of those names that the manifest's provenance lists, with the digest of each one's
  manifest. They are there before what is made with them.

Of a folder, nothing is replaced or removed but what these names and layouts say (``folder.py``); on local disks nothing
in it is a link.

Shards follow tensor-parallel cuts, so that one actor writes one whole. Inner chunks are whole rows, at most 256 KiB
where rows are shorter, so that a ZeRO rank reads its own rows and at most one chunk more at either end. The codecs are
``sharding_indexed`` over ``bytes`` and ``crc32c``. Nothing is compressed: weights hold little to compress
(``tests/benchmarks/checkpoint.py`` measures what zstd would win and cost). bfloat16 is stored as uint16 bit patterns
with ``attributes.logical_dtype``.

Plain zarr reads it: ``zarr.open_group(URL + "/" + manifest["data"])["model.norm.weight"][:]``. It checks the crc32c of
what it reads but not the manifest's digests, sees bfloat16 as uint16, and reads a missing shard as NaN,
not as an error.
"""

from bot_dist.store.fitted_operators import OperatorWriter, read_columns, read_constant, read_rows, stored_operators
from bot_dist.store.folder import is_vacant, remove_store
from bot_dist.store.layout import StoredParameter, array_layout, store_layout
from bot_dist.store.manifest import FORMAT_VERSION, Manifest
from bot_dist.store.reader import CheckpointReader, Damage
from bot_dist.store.writer import CheckpointWriter, attempt_of, check_target

__all__ = [
    "FORMAT_VERSION",
    "CheckpointReader",
    "CheckpointWriter",
    "Damage",
    "Manifest",
    "OperatorWriter",
    "StoredParameter",
    "array_layout",
    "attempt_of",
    "check_target",
    "is_vacant",
    "read_columns",
    "read_constant",
    "read_rows",
    "remove_store",
    "store_layout",
    "stored_operators",
]
