# Frozen encoders: weights, the target's head, and the texts that its text tower embeds.

for job in jobs_of("weights"):

    rule:
        name:
            job.name
        input:
            job.input_manifests,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        conda:
            "../envs/flowkit.yaml"
        threads: 1
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            spec=spec_of(job),
        message:
            job.name
        shell:
            command("weights")


for job in jobs_of("head"):

    rule:
        name:
            job.name
        input:
            job.input_manifests,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        conda:
            "../envs/flowkit.yaml"
        threads: 1
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            spec=spec_of(job),
        message:
            job.name
        shell:
            command("head")


for job in jobs_of("texts"):

    rule:
        name:
            job.name
        input:
            job.input_manifests,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        conda:
            "../envs/flowkit.yaml"
        threads: 1
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            spec=spec_of(job),
        message:
            job.name
        shell:
            command("texts")
