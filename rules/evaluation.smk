# Metrics, one rule per trained run and one for all baselines, and the table that joins them.

for job in jobs_of("evaluate"):

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
            command("evaluate")


for job in jobs_of("summary"):

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
            command("summary")
