"""The door of the communication profile: fedbsd_dist.main with profile.comm=true.

torchrun --nproc_per_node=8 -m fedbsd_dist.profile run.yaml run.dir=runs/bytes      what that method saves on FedAvg
python -m fedbsd_dist.profile method.name=[fedbsd,scaffold] seed=[0,1,2]            two methods, three seeds
"""

from fedbsd_dist import main

if __name__ == "__main__":
    main.start("profile.comm=true")
