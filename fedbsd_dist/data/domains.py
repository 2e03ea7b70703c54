"""Source `domains`: the same classes in several looks, in any of three layouts."""

from pathlib import Path

from fedbsd_dist.config import Data
from fedbsd_dist.data import archives, domain_lists, listing, tree
from fedbsd_dist.data.cache import Origin
from fedbsd_dist.errors import UserError

LAYOUT = (
    f"ROOT/DOMAIN/{tree.LAYOUT}; or ROOT/DOMAIN_train.txt and ROOT/DOMAIN_test.txt with lines of an image's path "
    f"from ROOT and its class's number (DomainNet); or ROOT/DOMAIN.npz or ROOT/DOMAIN/{{train,test}}.{{npz,pkl}}"
)


def origin(data: Data) -> Origin:
    """The samples of all domains. Raises UserError for what is in none of the layouts."""
    return archives.origin(data, LAYOUT, _of_folder)


def _of_folder(data: Data) -> Origin:
    from fedbsd_dist.data import array_domains

    root = Path(data.root)
    if domain_lists.recognises(root):
        return listing.origin(domain_lists.read(root, data), data)
    if array_domains.recognises(root):
        return array_domains.origin(data)
    domains = {folder.name: folder for folder in tree.folders(root)}
    if domains.keys() & tree.SPLITS.keys() or not any(tree.folders(folder) for folder in domains.values()):
        found = ", ".join(sorted(entry.name + "/" * tree.is_folder(entry) for entry in tree.visible(root))[:10])
        raise UserError(
            f"{root}: is laid out in no way that is known. Expected: {LAYOUT}. Found: {found or 'nothing'}."
        )
    return listing.origin(listing.of_tree(root, domains, data), data)
