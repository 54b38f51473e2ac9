"""What the tests stand on: isolated git, generated repositories, upstreams and the appliance as a process."""
