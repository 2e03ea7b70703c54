"""The door of `python -m fedbsd_dist.data`; the room is fedbsd_dist.preview."""

from fedbsd_dist import preview

if __name__ == "__main__":
    preview.main()
