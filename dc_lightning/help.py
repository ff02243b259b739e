"""What the command line says of itself, without the seconds that it takes to import what it runs."""

from collections.abc import Sequence

from dc_lightning import __version__
from dc_lightning.errors import require_known

COMMANDS = {
    "fit": "condense a dataset, and train fresh networks on the result",
    "evaluate": "score sets: ours, published ones, folders of images",
    "select": "select real images: random, herding, k-center, forgetting",
    "export": "write a set in a form to share",
    "sets": "list the sets that ship",
    "reproduce": "run a table of a paper",
    "report": "print the tables of results, beside the papers' figures",
    "continual": "continual learning with memories of condensed or selected images",
    "architecture-search": "rank networks by a small set, and by all data",
}

_CONFIG = """
  --config FILE                    YAML of options; later files and options refine earlier ones"""
_DATA = """
  --data NAME                      Digits, MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, ImageFolder, HuggingFace,
                                   TorchDataset, or the import path of your own
  --data.root FOLDER               where its files are"""
_EVALUATION = """
  --evaluation.networks NAMES      test networks, a list or a pool such as S or M
  --evaluation.num_networks N      of each (20)
  --evaluation.other_recipes LIST  score by these as well: "[dsa, idc]"
  --evaluation.baselines LIST      beside it: "[random, 8-bit, herding, k-center, forgetting, whole set]" """.rstrip()
_TRAINER = """
  --trainer.accelerator NAME       cpu, gpu, auto
  --trainer.devices N              processes, with --trainer.strategy ddp
  --seed_everything N              of every draw (0)"""

_TEXTS = {
    "fit": f"""
  dc-lightning fit --config configs/quickstart.yaml
  dc-lightning fit --config configs/base.yaml --config configs/methods/dsa.yaml --data FashionMNIST --model.ipc 10
{_CONFIG}
  --model NAME                     CondensationModule (DC and DSA), DistributionMatching, IDC, DREAM, FRePo, or your own
  --model.ipc N                    synthetic images per class
  --model.network NAME             that condenses: ConvNet, MLP, torchvision:NAME, timm:NAME, or your own
  --model.init NAME                to start from: noise, real, k-means, nearest
  --model.lr_images RATE           learning rate of the images
  --model.pixels unit              keep pixels inside [0, 1]
{_DATA}
  --data.batch_real N              real images of a class a matching step (256)
  --data.validation SHARE          hold out a share of the training images
  --evaluation.split validation    test on these, to choose settings by
  --evaluation.choose_iteration true  take the images of the iteration that was best on these
  --trainer.max_epochs N           outer iterations (1000)
  --evaluation.every_n N           outer iterations between evaluations (500); 0 for the end alone{_EVALUATION}
{_TRAINER}
  --trainer.logger.version NAME    folder of the run below lightning_logs
  --checkpoint.every_n N           outer iterations between checkpoints that are kept
  --ckpt_path FILE                 resume: a checkpoint, last, or auto
  --compile true                   compile networks
  --cuda_graphs true               on a GPU: record a step and replay it, so that it does not wait for Python
  --threads N                      on the CPU; auto (the default) takes one for small images""",
    "evaluate": f"""
  dc-lightning evaluate --data FashionMNIST --synthetic synthetic.pt --evaluation.networks M
  dc-lightning evaluate --data FashionMNIST --synthetic FashionMNIST/ipc10
{_CONFIG}
  --synthetic PATHS                a set, or a list of sets by one method: a file, a folder, the name of one that ships
  --space NAME                     of its images, normalised or pixels, where the file does not say
  --whitening FILE                 the ZCA transform of whitened images
  --factor N                       training images along each side of a stored one, likewise
  --labels NAME                    what soft labels are, probabilities or logits, likewise
  --experiment N                   one of several sets in a file
{_DATA}
{_EVALUATION}
{_TRAINER}""",
    "select": f"""
  dc-lightning select --data FashionMNIST --method herding --model.ipc 10
{_CONFIG}
  --method NAME                    random, herding, k-center, forgetting
  --model.ipc N                    images per class
{_DATA}
{_EVALUATION}
  --evaluation.features_network NAME   network of the whole set that selects (ConvNet)
  --evaluation.whole_set_epochs N  its epochs (20)
{_TRAINER}""",
    "continual": f"""
  dc-lightning continual --config configs/base.yaml --config configs/methods/dsa.yaml \\
    --config configs/continual/class_incremental.yaml
  dc-lightning continual --config configs/continual/digits.yaml
{_CONFIG}
  --protocol.steps N               stages into which the classes are divided (5)
  --protocol.orders N              of the classes (5)
  --protocol.memories LIST         "[condensed, random, herding, k-center, forgetting]"
  --protocol.training NAME         memory (fresh networks on the memory alone) or rehearsal (further training)
  --protocol.distillation WEIGHT   of the network of the stage before, in a rehearsal (0)
  --output FOLDER                  of memories and networks; the same command continues what was stopped
  --model NAME                     what condenses; see `dc-lightning fit --help`
  --model.ipc N                    images per class that are kept
  --trainer.max_epochs N           outer iterations of each condensation
{_DATA}
  --evaluation.num_networks N      networks of each order
{_TRAINER}""",
    "architecture-search": f"""
  dc-lightning architecture-search --config configs/architecture_search/paper.yaml --data FashionMNIST --space.sample 60
{_CONFIG}
  --proxies LIST                   sets, and "random", "herding", "k-center", "forgetting", "early stopping"
  --space.width LIST               of the ConvNets; likewise depth, normalization, activation, pooling
  --space.networks LIST            other networks
  --space.sample N                 so many of all
  --model.ipc N                    images per class that are selected
{_DATA}
  --evaluation.recipe.epochs N     by which a proxy trains a network
  --evaluation.num_networks N      of each architecture on a proxy
  --evaluation.cache FOLDER        of networks and accuracies; the same command continues what was stopped
  --evaluation.whole_set_epochs N  of each on all data
{_TRAINER}""",
}


def quick_answer(words: Sequence[str]) -> str | None:
    """The version or a help, where the words of a command line ask for it; None where something is to be run.

    Raises:
        InputError: if the command is unknown; names the one that is near.
    """
    command = words[0] if words else "--help"
    if command == "--version":
        return f"dc_lightning {__version__}"
    if command in ("--help", "-h"):
        lines = [f"  {name:<20} {what}" for name, what in COMMANDS.items()]
        return "\n".join(["Dataset condensation: dc-lightning COMMAND [OPTIONS]", "", *lines, "", "Each has a --help."])
    if not command.startswith("-"):
        require_known("command", command, COMMANDS)
    if command in _TEXTS and words[1:] and words[1] in ("--help", "-h"):
        more = (
            f"All options: dc-lightning {command} --help-all. Those of a class: --model.help NAME, --data.help NAME.\n"
            "What they come to: --print_config."
        )
        return f"dc-lightning {command}: {COMMANDS[command]}\n{_TEXTS[command]}\n\n{more}"
    return None
