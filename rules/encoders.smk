# Frozen encoders: weights, the target's head, and the texts that its text tower embeds.

for job in jobs_of("weights", "head", "texts"):

    rule:
        name:
            job.name
        input:
            job.declared_inputs,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        localrule: REQUESTS.runs_here(job)
        conda:
            "../envs/flowkit.yaml"
        threads: REQUESTS.threads(job)
        resources:
            **REQUESTS.of(job),
        params:
            *job.tracked,
            stage=job.spec.stage,
            spec=spec_of(job),
        message:
            job.name
        shell:
            COMMAND
