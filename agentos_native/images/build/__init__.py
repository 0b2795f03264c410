"""From a Dockerfile to a plan of steps, and what COPY and ADD do; running the plan is the supervisor's."""
